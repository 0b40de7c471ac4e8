"""The half of the check engine that runs beside a student's code.

It executes requests and returns data. It holds no expected value, no tolerance and no verdict, so
nothing that a student's code does to it can earn a point. Only this package is mounted where
submissions run; it needs nothing but torch.
"""
