"""The IMX500 as a target: which operators it takes, how much memory they need, what they cost."""
