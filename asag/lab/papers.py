"""What the papers use, where this project repeats them."""

# PAG and SEG as in their own papers and ASAG's; the maps of its Table 3 at the scale of ASAG, which it doesn't give.
SCALES = {"pag": 3.0, "seg": 3.0, "uniform": 1.5, "similarity": 1.5, "asag": 1.5}
