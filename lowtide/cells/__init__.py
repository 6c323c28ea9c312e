"""Cells: installations behind one front, each with a database, a bucket and fleets of its own."""
