"""How far can an image-restoration model be trusted?"""
