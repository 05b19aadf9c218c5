"""Threats: what is done to every image, one frozen dataclass per protocol.

A threat is built once, from the command line or in a notebook, and answers every question about
itself: the folder of its records, the settings for the run file, the columns of its rows, its cost,
and the rows that its attack gives. A new protocol is one class in one file here, and its name in
`evaluation/protocols.py`.

    Clean                accuracy on the images as they are
    Corruptions          accuracy on corrupted images (Hendrycks & Dietterich 2019)
    AutoAttack           verdicts within eps, Linf or L2 (Croce & Hein 2020)
    ReferenceAutoAttack  the same by pyautoattack, `--engine reference`
    RandomAutoAttack     verdicts on random networks, `--budget rand`
    Screened             robust accuracy with an interval, `--budget screened`
    FastMinimumNorm      minimal norms, `--protocol fmn` (Pintor et al. 2021)
    Crossing             minimal norms in few passes, `--protocol crossing` (ours, docs/threats.md)
    Foolbox              minimal L2 norms by foolbox's DDN, Carlini-Wagner, DeepFool, and by its FMN
                         as Feng 2025 ran it
"""
