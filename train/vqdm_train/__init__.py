"""Training, evaluation and command line for vqdm_cuda: `vqdm --help`, or `python -m vqdm_train`."""
