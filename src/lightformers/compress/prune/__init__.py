"""Pruning: score x structure x scope x schedule. Scores, scopes and masks are shared; a paper fills in the rest."""
