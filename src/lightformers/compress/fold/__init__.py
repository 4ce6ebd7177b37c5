"""Rewrites that fold one thing into another: norms into neighbouring layers, blocks into their neighbours."""
