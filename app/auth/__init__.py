"""Who may: tokens, keys and clients, and what each is permitted."""
