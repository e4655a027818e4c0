"""The message contracts: jobs, events, control, results, quality and errors. Imports nothing of ours."""
