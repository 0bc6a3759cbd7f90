"""How much: rates priced in rows, decided in this process and reconciled with the others."""
