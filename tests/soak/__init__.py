"""Hours of load and kills: ``python -m tests.soak``, and a short run of it."""
