"""A run: started, resumed, watched, opened again.

`api` starts and opens runs, in folders that `folder` holds. A `Run` (`run`) brings settings, data and a `Training`
(`training`) together: the federation's loop, on the `engine`, or the fit of a `reference`. What happens at the end of
a round are `callbacks`, `loggers` and checkpoints (`resume` says when and whence, `checkpoint` is the file); `signals`
end a run politely. What is told when it has ended is in `summary`, `console` and `recommend`.
"""
