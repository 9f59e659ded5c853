"""frames -> frames: interchangeable models of the sequence, one file each."""
