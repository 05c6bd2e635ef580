"""The indexer at work: pending markers claimed, studies rebuilt, changes made by hand found."""
