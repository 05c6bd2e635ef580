"""What ``tests.benchmarks.receive`` is made of."""
