"""What the script `lm` needs: text, decoders, lessons on hidden states, table and page."""
