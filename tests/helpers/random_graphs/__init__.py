"""Random graphs: blocks and streams, the fuzzer over all operators, and what once failed."""
