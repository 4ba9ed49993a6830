"""A segmenter repurposed as classifier: ``decoder`` is the network, ``trainer`` its loss and loop, ``runs`` what is measured on test frames."""

VERSION = 1  # of network, loss and measures; raise it when their numbers change
