"""The gate: may this package be shipped, as far as these pictures can tell?

`measuring` scores the int8 and the float graph of a package on the same instances, `intervals` says how sure
their figures are, `criteria` turns figures and limits into verdicts, `earlier` reads the report a package is
compared with, `gate` puts them together, `reports` and `junit` write down what was found.
"""
