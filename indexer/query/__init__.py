"""From terms, or C-FIND keys, to the studies, series, instances and patients that match."""
