"""The checks of chapter 11."""

import math

from kdlab.classroom.check.grading import Answer, ask, called, say
from kdlab.classroom.scaling import Step, pieces_that_fit
from kdlab.classroom.scaling import break_even as steps_until


def break_even(answer: Answer) -> bool:
    """11, exercise 1: ``answer(start, before, after)`` gives the steps after which compiling has paid, or infinity."""
    for start, before, after in ((33.0, 0.75, 0.25), (32.25, 0.75, 0.25), (8.0, 2.0, 0.5)):
        want = steps_until(start, before, after)
        gain = before - after
        known = {
            start / gain: "the run has whole steps: round up.",
            start / before: "this many steps take as long as the start; but the compiled ones are not free.",
            start / after: "the start is weighed against what a step gains, not against what it takes.",
            start / (after - before): "exchanged: a gain is what a step took before, less what it takes after.",
            start * gain: "seconds by seconds a step: divide.",
            start / (before / after): "the gain of a step is a difference of seconds, not their ratio.",
            math.floor(start / gain): "one step too early: round up.",
            math.floor(start / gain) + 1: "one step too late, where it comes out even.",
        }
        problem = ask(answer, (start, before, after), want, known)
        if problem is not None:
            return say(f"start {start:g} s, {before:g} s before, {after:g} s after: {problem}")
    for before, after in ((0.25, 0.75), (0.5, 0.5)):
        got, problem = called(answer, 30.0, before, after)
        if problem is not None:
            return say(f"a step of {after:g} s after {before:g} s: {problem}")
        if got != math.inf:
            return say(f"a step of {after:g} s after {before:g} s never pays: wanted math.inf, and you gave {got}.")
    return say(None)


def pieces(answer: Answer) -> bool:
    """11, exercise 2: ``answer(batch_size, fixed, each, limit)`` gives the fewest equal pieces that fit the memory."""
    cases = ((64, 2.0, 0.25, 6.0), (64, 2.0, 0.25, 5.0), (48, 1.0, 0.5, 9.0), (8, 1.0, 1.0, 16.0))
    for batch_size, fixed, each, limit in cases:
        want = pieces_that_fit(batch_size, fixed, each, limit)
        room = (limit - fixed) / each
        known = {
            math.ceil(batch_size / room): "these pieces are not equal: their number must divide the batch.",
            batch_size / room: "a number of pieces is a whole one, and must divide the batch.",
            batch_size // want: "this is how many images a piece has; wanted: how many pieces there are.",
            pieces_that_fit(batch_size, 0, each, limit): "what is there beside the images needs room, too.",
            batch_size: "pieces of one image fit; but fewer, larger pieces are faster.",
            1: "the whole batch does not fit.",
        }
        problem = ask(answer, (batch_size, fixed, each, limit), want, known)
        if problem is not None:
            return say(f"batch {batch_size}, fixed {fixed:g}, each {each:g}, limit {limit:g}: {problem}")
    return say(None)


def speed_up(answer: Answer) -> bool:
    """11, exercise 3: ``answer(n, serial, compute, gradient_bytes, link)`` gives the speed-up with n processes."""
    for n, serial, compute, size, link in ((4, 0.06, 0.8, 1e8, 1e9), (8, 0.02, 0.5, 2e8, 1e9), (1, 0.1, 0.8, 1e8, 1e9)):
        step = Step(compute, serial, size)
        whole = serial + compute
        known = {
            float(n): "linear: neither what is not shared nor the link takes time here.",
            whole / step.seconds(n): "what is sent is the gradient's bytes: they take time, too.",
            Step(compute, 0.0, size).speed_up(n, link): "what is not shared takes its seconds in every process.",
            whole / (step.seconds(n) + size / link): "in a ring each process sends 2 (n - 1) / n of the gradient.",
            whole / (step.seconds(n) + step.communication(n, link) / 2): (
                "the ring goes round twice, once to add up and once to tell: 2 (n - 1) / n."
            ),
            whole / (step.seconds(n) + 2 * (n - 1) * size / link): "each sends pieces of an n-th: 2 (n - 1) / n.",
            step.seconds(n, link): "these are the seconds of a step; wanted: how many times shorter they are.",
            1 / step.speed_up(n, link): "upside down: what it takes alone, divided by what it takes together.",
            whole / (whole / n + step.communication(n, link)): "what is not shared is not divided by n.",
        }
        want = step.speed_up(n, link)
        problem = ask(answer, (n, serial, compute, size, link), want, known)
        if problem is not None:
            return say(f"{n} processes, {serial:g} s and {compute:g} s, {size:g} bytes at {link:g} a second: {problem}")
    return say(None)
