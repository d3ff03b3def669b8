"""A chat server on this machine that misbehaves on request, in a thread of the test."""

import asyncio
import json
import threading

from aiohttp import web


class Server:
    "Answers chat completions; what the last message says decides how. Keeps a ledger of what it would bill."

    def __init__(self):
        self.bodies, self.headers, self.billed, self.tokens, self.keys = [], [], 0.0, 0, set()
        self.latency_s, self.capacity, self.pushed, self.models, self.models_asked = 0.02, None, 0, None, 0
        self.refuses, self.context = (), None
        self.active = self.most_active = 0
        self.loop, ready = asyncio.new_event_loop(), threading.Event()
        self.thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self.thread.start()
        assert ready.wait(10)

    def _serve(self, ready):
        async def start():
            app = web.Application()
            app.router.add_post("/v1/chat/completions", self.answer)
            app.router.add_post("/moved/chat/completions", self.move)
            app.router.add_get("/v1/models", self.list_models)
            self.runner = web.AppRunner(app, shutdown_timeout=0.1)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0)
            await site.start()
            self.base = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        self.loop.run_until_complete(start())
        self.loop.call_soon(ready.set)  # not before the loop can be stopped
        self.loop.run_forever()
        self.loop.run_until_complete(self.runner.cleanup())

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    def times(self, text):
        return sum(b["messages"][-1]["content"] == text for b in self.bodies)

    async def move(self, request):
        raise web.HTTPTemporaryRedirect(f"{self.base}/v1/chat/completions?key={request.headers.get('Authorization', '')}")

    async def list_models(self, request):
        self.models_asked += 1
        return web.json_response(self.models) if self.models else web.Response(status=404)

    async def answer(self, request):
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            return await self.reply(request)
        finally:
            self.active -= 1

    async def reply(self, request):
        body = await request.json()
        text = body["messages"][-1]["content"]
        self.bodies.append(body)
        self.headers.append(request.headers)
        first, key = self.times(text) == 1, request.headers.get("Authorization", "Bearer none").split()[1]
        if self.capacity and self.active > self.capacity:
            self.pushed += 1
            return web.json_response({"error": {"message": "too many"}}, status=429, headers={"Retry-After": "0.02"})
        if "429 once" in text and first:
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0"})
        if "500 once" in text and first:
            return web.Response(text="<html>oops</html>", status=500)
        if "500 always" in text:
            return web.json_response({"error": "broken"}, status=500)
        if "400" in text:
            return web.json_response({"error": {"message": "bad\nrequest"}}, status=400)
        if "401" in text:
            return web.json_response({"error": {"message": f"wrong key {key}, request {len(self.bodies)}"}}, status=401)
        if "key in" in text:  # wherever a server can put it
            if "key in text" in text:
                return web.json_response({"choices": [{"message": {"content": f"your key is {key}"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
            if "key in reason" in text:
                return web.Response(status=400, reason=f"no {key}", text=json.dumps({"error": {"message": "x"*290 + key}}))
            if "key in header" in text:
                return web.json_response({"detail": f"Bearer {key}"}, status=418, headers={"X-Key": key, "Retry-After": key})
            return web.Response(status=400, text=f"<html>{key}</html>", headers={"Content-Length": "7000"} if "cut" in text else {})
        if "hang" in text:
            await asyncio.sleep(30)
        if "403" in text:
            return web.json_response({"error": "not this one"}, status=403)
        if "json_schema" in self.refuses and body.get("response_format", {}).get("type") in self.refuses:
            return web.json_response({"error": {"message": f"response_format of type {body['response_format']['type']} is not supported"}}, status=400)
        if self.context and len(text)//4 > self.context:
            return web.json_response({"error": {"message": f"This model's maximum context length is {self.context} tokens."}}, status=400)
        if "no JSON once" in text and first:
            return web.Response(text="{\"choices\": [", content_type="application/json")
        if "cut once" in text and first:
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b'{"choices"')
            request.transport.close()
            return response
        if "slow once" in text and first:
            await asyncio.sleep(1.5)
        if "huge" in text:
            return web.Response(body=b"x"*(17*2**20))
        if "new limit" in text and "max_tokens" in body:
            return web.json_response({"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'."}}, status=400)
        await asyncio.sleep(self.latency_s)
        usage = {"prompt_tokens": len(text), "completion_tokens": 3}
        if "wrong count" in text:
            usage = {"prompt_tokens": "many", "completion_tokens": -1}
        elif request.headers["Idempotency-Key"] not in self.keys:
            self.keys.add(request.headers["Idempotency-Key"])
            self.billed += usage["prompt_tokens"]*1e-6 + 3*2e-6
            self.tokens += usage["prompt_tokens"] + 3
        content = None if "refuse" in text else text.upper()
        return web.json_response({"choices": [{"message": {"content": content}, "finish_reason": "stop"}],
                                  **({} if "no count" in text else {"usage": usage})})
