"""A segmenter repurposed as classifier: ``decoder`` is the network, ``trainer`` its loss and loop, ``runs`` what is measured on test frames."""

VERSION = 1  # of network and loss; raise it when their numbers change
MEASURES = 2  # the same for what is measured of masks
