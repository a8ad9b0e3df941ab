"""The trainer that runs inside a Job: prepares data, trains, and leaves a verified adapter."""
