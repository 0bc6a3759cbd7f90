"""What was predicted: a journal on local disk first, the database later, and the questions that it answers."""
