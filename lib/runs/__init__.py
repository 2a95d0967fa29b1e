"""How a run is stored, executed, resumed, swept. In the order in which modules build on each other:

status               the small row that says how far a run is
bundles, store       finished runs packed for git; all that was trained, read as frames and models
checkpoints, attempt what a run goes on from; one try at a run in this process
children, places     a training in a process of its own; where the workers come from
grid, sweep          which runs are asked for; training those that are missing
traces, audit        recordings, constraints and lesions of what was trained
"""
