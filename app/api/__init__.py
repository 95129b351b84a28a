"""The endpoint that programs speak to: OpenAI's protocol over the same DocumentChat as the page.

POST /v1/chat/completions, /v1/responses, /v1/completions    GET /v1/models
POST, GET, DELETE /v1/files                                   a file is a document
"""
