"""The benchmarks, one file each; a file is found by standing here and naming its `TASK`."""
