"""Files: upload, validation of JSONL, records."""
