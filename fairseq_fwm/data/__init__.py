"""Generated data: what the demo and the tests train on. Nothing here needs torch or fairseq."""
