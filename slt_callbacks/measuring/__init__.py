"""From a module to a `Measurement`.

The way of a measurement is one line, ``snapshot -> measure -> record -> publish``. A trigger gives a `Snapshot` to an
executor. `Estimator.measure` forks it (`Fork`: the trainable parameters as views of one vector), takes the losses at w*
(`Objective`), lets observables of the fork look, and runs the chains of its `Target`: a `Sampler` yields a `Draw`
(numbers, never weights) before each update, and a `Panel` hands it to the observables. What they found, pictures and
tables included, is a `Measurement`. The `Story` keeps it, feeds the detectors and gives a `Publication` to every sink.
"""
