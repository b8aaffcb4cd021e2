"""What costs a GPU: merging, asking, marking. Workers measure; they keep no books."""
