"""One adapter per protocol: parse, call one verb of the loop, render."""
