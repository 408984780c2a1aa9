"""Benchmark harness: cells, records, workers, tables and reports."""
