"""Feed-forward layers of several experts, of which a token takes one."""
