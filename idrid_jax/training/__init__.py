"""State, losses, one update of both networks, and the loop around it."""
