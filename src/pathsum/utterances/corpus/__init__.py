"""Corpora: a manifest in, a JSON line for each utterance out, on all cores or on a cluster, however interrupted."""
