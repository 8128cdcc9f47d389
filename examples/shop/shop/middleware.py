def content_security_policy(get_response):
    """No script and no style but our own files: the progress bars need nothing else."""

    def respond(request):
        response = get_response(request)
        response.headers.setdefault("Content-Security-Policy", "default-src 'self'; img-src 'self' data:")
        return response

    return respond
