"""The derived indexes: study records, catalogue, queries, watching and reconciling."""
