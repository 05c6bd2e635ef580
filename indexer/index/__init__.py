"""The derived files: study.json, studies.jsonl and the instance shards: made from manifests and
folders, and read back.
"""
