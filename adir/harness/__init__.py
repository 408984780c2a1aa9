"""From the choice of an experiment to its table: cells, records, workers, tables, report."""
