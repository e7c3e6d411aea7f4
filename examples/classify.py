"""Classify the texts on the command line: python examples/classify.py ARTEFACT TEXT..."""

import sys

import qbert

classifier = qbert.load(sys.argv[1])
for text, found in zip(sys.argv[2:], classifier.many(sys.argv[2:]), strict=True):
    print(f"{found.label}\t{found.score:.4f}\t{text}")
