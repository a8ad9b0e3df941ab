"""The operator: watches GemmaFineTune resources and runs one Job per attempt."""
