"""The top floor: what turns the rooms into a course, and the command line.

`cli` declares the one console command, `rnn2gpt`; each of its verbs is a thin call into the
module that does the work. Nothing else in the project imports this package.
"""
