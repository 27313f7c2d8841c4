"""device-check/ of a package: does a real chip compute what the simulator computes?

`device_check` puts the folder together, `expected` computes the integers that the chip should give,
`dnn_params` reads what the converter says of the compiled network's inputs and outputs, `readme` has the
words. `on_the_pi` is what runs on the Raspberry Pi; it is copied into the folder.
"""
