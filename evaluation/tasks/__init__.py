"""The benchmarks, one file each; a file is found because it is here and defines `TASK`."""
