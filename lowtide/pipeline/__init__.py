"""The pipeline: input files to queued requests, results to output files."""
