"""What each loss means: the user's words posed as a lattice. One file a loss, no scores, no framework."""
