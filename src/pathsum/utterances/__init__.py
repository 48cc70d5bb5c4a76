"""``pathsum align`` and ``pathsum decode``: scores in, times and texts out, of one file or of a corpus."""
