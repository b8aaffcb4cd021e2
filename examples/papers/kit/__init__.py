"""What the replays share.

`world` says what there is to learn, and `models` trains it. A `lab.Lab` is one training seed of one paper: its
checkpoints and suites lie in its directory, its studies are files that any `mergefront` command takes. `paper.Paper` is
what a replay consists of, `claims.Claim` what it found, and `page` writes docs/papers.md from these.
"""
