"""The repository itself: README, packaging, deployment, directions between rooms."""
