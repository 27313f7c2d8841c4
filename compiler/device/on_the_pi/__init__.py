"""What runs on the Raspberry Pi, with Python's standard library, numpy and picamera2 only.

The demo writes its pictures with PIL, which picamera2 itself depends on.

These files are copied into `device-check/` of every package and run there:

    python3 -m on_the_pi.check network.rpk
    python3 -m on_the_pi.demo network.rpk --point 320,240

`outputs` reads what the camera hands over, `camera` injects inputs, `check` compares, `demo` draws masks.
"""
